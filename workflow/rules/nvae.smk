rule nvae:
    input:
        unpack(data_of),
        settings="results/{experiment}/nvae/seed{seed}/nvae.yaml",
    output:
        model="results/{experiment}/nvae/seed{seed}/model.pt",
        training="results/{experiment}/nvae/seed{seed}/training.json",
        history="results/{experiment}/nvae/seed{seed}/history.jsonl",
        curves=report(
            "results/{experiment}/nvae/seed{seed}/pictures/curves.png",
            caption="../report/nvae.rst",
            category="Training",
            subcategory="{experiment}",
            labels={"stage": "nvae", "seed": "{seed}"},
        ),
    log:
        "results/{experiment}/nvae/seed{seed}/nvae.log",
    priority: 2  # trainings first: what waits for them is longest
    retries: 3  # a training stops itself before its time is up, and the next attempt goes on from there
    conda:
        "../../environment.yml"
    threads: need("nvae", "threads")
    resources:
        cpus_per_task=need("nvae", "threads"),
        nodes=1,
        gpu=need("nvae", "gpu"),
        mem_mb=need("nvae", "mem_mb"),
        runtime=need("nvae", "runtime"),
    shell:
        "python -m vaebm nvae {input.settings} --data {input.data} --model {output.model}"
        " --threads {resources.cpus_per_task} --gpus {resources.gpu} --time-limit {resources.runtime} --log {log}"
