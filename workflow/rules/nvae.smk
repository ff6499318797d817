rule nvae:
    input:
        unpack(data_of),
        settings=settings("results/{experiment}/nvae/seed{seed}/nvae.yaml"),
    output:
        model="results/{experiment}/nvae/seed{seed}/model.safetensors",
        training="results/{experiment}/nvae/seed{seed}/training.json",
        history="results/{experiment}/nvae/seed{seed}/history.jsonl",
        curves=pictures("results/{experiment}/nvae/seed{seed}", "../report/nvae.rst", "nvae"),
    log:
        "results/{experiment}/nvae/seed{seed}/nvae.log",
    wildcard_constraints:
        experiment=experiments_of("nvae"),
    priority: 2  # trainings first: they are on the longest path
    retries: 3  # a training stops before its time limit, and the next attempt resumes it
    conda:
        "../../environment.yml"
    threads: resource("nvae", "threads")
    resources:
        **resources_of("nvae"),
    shell:
        "python -m vaebm nvae {input.settings} --data {input.data} --model {output.model} %s --time-limit {resources.runtime} --log {log}" % THREADS_AND_GPUS


# Instead of `nvae` or `ebm`, for a model from elsewhere. Before the trainings, so that one that does not fit shows at once.
rule pretrained:
    input:
        unpack(data_of),
        unpack(nvae_below),
        checkpoint_file_of,
        settings=ancient(lambda wildcards: settings_of_stage(wildcards, kept=True)),  # a moved checkpoint reruns nothing; params has its hash
    output:
        model="results/{experiment}/{variant}/seed{seed}/model.safetensors",
        training="results/{experiment}/{variant}/seed{seed}/training.json",
    log:
        "results/{experiment}/{variant}/seed{seed}/pretrained.log",
    wildcard_constraints:
        experiment=experiments_of("pretrained"),
    priority: 3
    conda:
        "../../environment.yml"
    params:
        checkpoint=checkpoint_hash,
        nvae=options("nvae"),
    shell:
        "python -m vaebm pretrained {input.settings} --data {input.data} {params.nvae} --model {output.model} --log {log}"
