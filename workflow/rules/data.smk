rule data:
    input:
        settings=ancient(data_settings_of),  # raw files may be deleted after preparation
    output:
        images="data/{dataset}/images.npy",
        labels="data/{dataset}/labels.npy",
        manifest="data/{dataset}/manifest.json",
    log:
        "results/data/{dataset}.log",
    wildcard_constraints:
        dataset=preparable(),
    conda:
        "../../environment.yml"
    threads: resource("data", "threads")
    resources:
        **resources_of("data"),
    params:
        settings=options("settings"),
        # without the path: other settings prepare the set again, another path does not
        images=lambda wildcards: DATASETS[wildcards.dataset].model_dump_json(exclude={"path"}) if wildcards.dataset in DATASETS else "",
    shell:
        "python -m vaebm data {wildcards.dataset} --folder $(dirname {output.manifest}) {params.settings} --threads {resources.cpus_per_task} --log {log}"


# Compares the bytes with data.dvc before any training. DVC commits all sets of data.dvc at once, so the others, which are small,
# are prepared first, but not for a storage, into which DVC does not look. A checkpoint, so that Snakemake plans again after it: a
# job that runs hides from the plan what changed in the jobs that depend on it by `ancient` inputs.
checkpoint pin:
    input:
        lambda wildcards: [f"{folder}/manifest.json" for folder in PINNED if f"data/{wildcards.dataset}" in PINNED and not STORAGE],
        images="data/{dataset}/images.npy",
        labels="data/{dataset}/labels.npy",
        manifest="data/{dataset}/manifest.json",
        pins=local("data.dvc"),
    output:
        touch("results/data/{dataset}.pinned"),
    log:
        "results/data/{dataset}.pin.log",
    conda:
        "../../environment.yml"
    shell:
        "python -m vaebm pin $(dirname {input.manifest}) --name data/{wildcards.dataset} --pins {input.pins} --log {log}"
