rule ebm:
    input:
        unpack(data_of),
        settings="results/{experiment}/{variant}/seed{seed}/ebm.yaml",
        nvae="results/{experiment}/nvae/seed{seed}/model.pt",
    output:
        model="results/{experiment}/{variant}/seed{seed}/model.pt",
        training="results/{experiment}/{variant}/seed{seed}/training.json",
        history="results/{experiment}/{variant}/seed{seed}/history.jsonl",
        curves=report(
            "results/{experiment}/{variant}/seed{seed}/pictures/curves.png",
            caption="../report/ebm.rst",
            category="Training",
            subcategory="{experiment}",
            labels={"stage": "ebm, {variant}", "seed": "{seed}"},
        ),
    log:
        "results/{experiment}/{variant}/seed{seed}/ebm.log",
    wildcard_constraints:
        variant="|".join(TRAINED),
    retries: 3  # as for the NVAE
    conda:
        "../../environment.yml"
    threads: need("ebm", "threads")
    resources:
        torch_threads=need("ebm", "threads"),
        gpu=need("ebm", "gpu"),
        mem_mb=need("ebm", "mem_mb"),
        runtime=need("ebm", "runtime"),
    shell:
        "python -m vaebm ebm {input.settings} --data {input.data} --nvae {input.nvae} --model {output.model}"
        " --threads {resources.torch_threads} --gpus {resources.gpu} --time-limit {resources.runtime} --log {log}"
