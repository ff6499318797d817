# The training of an energy network, one job per variant and seed: vaebm/ebm/train.py. The functions are in common.smk.
rule ebm:
    input:
        unpack(data_of),
        unpack(prior_below),
        settings=settings("results/{experiment}/{variant}/seed{seed}/ebm.yaml"),
        nvae="results/{experiment}/nvae/seed{seed}/model.safetensors",
    output:
        model="results/{experiment}/{variant}/seed{seed}/model.safetensors",
        training="results/{experiment}/{variant}/seed{seed}/training.json",
        history="results/{experiment}/{variant}/seed{seed}/history.jsonl",
        curves=pictures("results/{experiment}/{variant}/seed{seed}", "../report/ebm.rst", "ebm, {variant}"),
    log:
        "results/{experiment}/{variant}/seed{seed}/ebm.log",
    wildcard_constraints:
        experiment=experiments_of("ebm"),
    priority: 2  # trainings first
    retries: 3
    conda:
        "../../environment.yml"
    threads: resource("ebm", "threads")
    resources:
        **resources_of("ebm"),
    params:
        prior=options("energy", "prior"),
    shell:
        "python -m vaebm ebm {input.settings} --data {input.data} --nvae {input.nvae} {params.prior} --model {output.model} %s --time-limit {resources.runtime} --log {log}"
        % THREADS_AND_GPUS


# A combination of a grid with the energy of another variant, or a variant with the energy on noise alone.
rule same_energy:
    input:
        unpack(same_energy),
        settings=settings_of_stage,
    output:
        stored(directory("results/{experiment}/{variant}/seed{seed}/pictures")),
        model="results/{experiment}/{variant}/seed{seed}/model.safetensors",
        training="results/{experiment}/{variant}/seed{seed}/training.json",
        history="results/{experiment}/{variant}/seed{seed}/history.jsonl",
    log:
        "results/{experiment}/{variant}/seed{seed}/same_energy.log",
    wildcard_constraints:
        experiment=experiments_of("same_energy"),
    conda:
        "../../environment.yml"
    shell:
        "cp -R {input.model} {input.training} {input.history} $(dirname {input.model})/pictures $(dirname {output.model}) 2> {log}"


# The ablation's GAN: its model is an NVAE whose decoder was trained further as a generator.
rule wgan:
    input:
        unpack(data_of),
        settings=settings("results/{experiment}/{variant}/seed{seed}/wgan.yaml"),
        nvae="results/{experiment}/nvae/seed{seed}/model.safetensors",
    output:
        model="results/{experiment}/{variant}/seed{seed}/model.safetensors",
        training="results/{experiment}/{variant}/seed{seed}/training.json",
        history="results/{experiment}/{variant}/seed{seed}/history.jsonl",
        curves=pictures("results/{experiment}/{variant}/seed{seed}", "../report/wgan.rst", "wgan, {variant}"),
    log:
        "results/{experiment}/{variant}/seed{seed}/wgan.log",
    wildcard_constraints:
        experiment=experiments_of("wgan"),
    priority: 2  # trainings first
    retries: 3
    conda:
        "../../environment.yml"
    threads: resource("ebm", "threads")
    resources:
        **resources_of("ebm"),
    shell:
        "python -m vaebm wgan {input.settings} --data {input.data} --nvae {input.nvae} --model {output.model} %s --time-limit {resources.runtime} --log {log}"
        % THREADS_AND_GPUS
