rule samples:
    input:
        unpack(models_of),
        settings=settings("results/{experiment}/{variant}/seed{seed}/samples/samples.yaml"),
    output:
        "results/{experiment}/{variant}/seed{seed}/samples/shard-{shard}.npy",
    log:
        "results/{experiment}/{variant}/seed{seed}/samples/shard-{shard}.log",
    conda:
        "../../environment.yml"
    threads: resource("samples", "threads")
    resources:
        **resources_of("samples"),
    params:
        energy=energy_option,
    shell:
        "python -m vaebm samples {input.settings} --nvae {input.nvae} {params.energy} --shard {wildcards.shard} --output {output}"
        " --threads {resources.cpus_per_task} --gpus {resources.gpu} --log {log}"
