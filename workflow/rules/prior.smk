# The energy on noise, which several variants share.
rule prior:
    input:
        unpack(data_of),
        settings=settings("results/{experiment}/prior/seed{seed}/prior.yaml"),
        nvae="results/{experiment}/nvae/seed{seed}/model.safetensors",
    output:
        model="results/{experiment}/prior/seed{seed}/model.safetensors",
        training="results/{experiment}/prior/seed{seed}/training.json",
        history="results/{experiment}/prior/seed{seed}/history.jsonl",
        curves=pictures("results/{experiment}/prior/seed{seed}", "../report/prior.rst", "prior"),
    log:
        "results/{experiment}/prior/seed{seed}/prior.log",
    priority: 2  # trainings first
    retries: 3
    conda:
        "../../environment.yml"
    threads: resource("prior", "threads")
    resources:
        **resources_of("prior"),
    shell:
        "python -m vaebm prior {input.settings} --data {input.data} --nvae {input.nvae} --model {output.model} %s --time-limit {resources.runtime} --log {log}"
        % THREADS_AND_GPUS
