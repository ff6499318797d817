rule samples:
    input:
        unpack(models_of),
        settings=settings("results/{experiment}/{variant}/seed{seed}/samples/samples.yaml"),
    output:
        images="results/{experiment}/{variant}/seed{seed}/samples/shard-{shard}.npy",
        record="results/{experiment}/{variant}/seed{seed}/samples/shard-{shard}.json",
    log:
        "results/{experiment}/{variant}/seed{seed}/samples/shard-{shard}.log",
    priority: 1  # before classifiers: the evaluations wait for both, and samples of an energy take longest
    conda:
        "../../environment.yml"
    threads: resource("samples", "threads")
    resources:
        **resources_of("samples"),
    params:
        energy=options("energy", "prior"),
    shell:
        "python -m vaebm samples {input.settings} --nvae {input.nvae} {params.energy} --shard {wildcards.shard} --output {output.images} %s --log {log}"
        % THREADS_AND_GPUS
