rule data:
    input:
        settings=ancient(data_settings_of),  # once it is prepared, its raw files may be gone
    output:
        images="data/{dataset}/images.npy",
        labels="data/{dataset}/labels.npy",
        manifest="data/{dataset}/manifest.json",
    log:
        "results/data/{dataset}.log",
    conda:
        "../../environment.yml"
    threads: need("data", "threads")
    resources:
        cpus_per_task=need("data", "threads"),
        mem_mb=need("data", "mem_mb"),
        runtime=need("data", "runtime"),
    params:
        settings=settings_option,
        images=images_of,
    shell:
        "python -m vaebm data {wildcards.dataset} --folder data/{wildcards.dataset} {params.settings} --threads {resources.cpus_per_task} --log {log}"


# Compares the bytes with data.dvc: nothing is trained on others than were pinned. DVC's cache takes all that data.dvc pins at
# once or nothing, so the other sets are prepared first; they are small.
rule pin:
    input:
        together,
        images="data/{dataset}/images.npy",
        labels="data/{dataset}/labels.npy",
        manifest="data/{dataset}/manifest.json",
        pins="data.dvc",
    output:
        touch("results/data/{dataset}.pinned"),
    log:
        "results/data/{dataset}.pin.log",
    conda:
        "../../environment.yml"
    shell:
        "python -m vaebm pin data/{wildcards.dataset} --pins {input.pins} --log {log}"
