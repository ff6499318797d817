rule classifier:
    input:
        unpack(lambda wildcards: prepared(EXPERIMENTS[wildcards.experiment].classifier_data)),
        settings=settings("results/{experiment}/classifier/classifier.yaml"),
    output:
        stored(directory("results/{experiment}/classifier/pictures")),
        model="results/{experiment}/classifier/model.safetensors",
        training="results/{experiment}/classifier/training.json",
        history="results/{experiment}/classifier/history.jsonl",
    log:
        "results/{experiment}/classifier/classifier.log",
    conda:
        "../../environment.yml"
    threads: resource("classifier", "threads")
    resources:
        **resources_of("classifier"),
    shell:
        "python -m vaebm classifier {input.settings} --data {input.data} --model {output.model} --threads {resources.cpus_per_task} --log {log}"


# Before the trainings, so that failed downloads of weights show at once.
rule reference:
    input:
        unpack(data_of),
        unpack(classifier_of),
        lambda wildcards: here(EXPERIMENTS[wildcards.experiment].evaluation.extractions[wildcards.extractor].weights),
        settings=ancient(settings("results/{experiment}/reference/{extractor}.yaml", kept=True)),  # a moved weights file reruns nothing; params has its hash
    output:
        "results/{experiment}/reference/{extractor}.npz",
    log:
        "results/{experiment}/reference/{extractor}.log",
    priority: 3
    conda:
        "../../environment.yml"
    threads: resource("evaluation", "threads")
    resources:
        **resources_of("evaluation"),
    params:
        classifier=options("classifier"),
        weights=weights_of,
    shell:
        "python -m vaebm reference {input.settings} --data {input.data} {params.classifier} --output {output} %s --log {log}" % THREADS_AND_GPUS


# `evaluation` fits every path of metrics.json.
ruleorder: foreign_evaluation > evaluation


rule evaluation:
    input:
        unpack(data_of),
        unpack(models_of),
        unpack(reference_of),
        records_of,
        shard_records_of,
        settings=settings("results/{experiment}/{variant}/seed{seed}/evaluation/evaluation.yaml"),
        shards=shards_of,
    output:
        stored(directory("results/{experiment}/{variant}/seed{seed}/evaluation/pictures")),
        metrics="results/{experiment}/{variant}/seed{seed}/evaluation/metrics.json",
    log:
        "results/{experiment}/{variant}/seed{seed}/evaluation/evaluation.log",
    conda:
        "../../environment.yml"
    threads: resource("evaluation", "threads")
    resources:
        **resources_of("evaluation"),
    params:
        energy=options("energy", "prior"),
        classifier=options("classifier"),
        ood=lambda wildcards, input: "",  # kept, so that results of earlier versions stay up to date
    shell:
        "python -m vaebm evaluation {input.settings} --data {input.data} --nvae {input.nvae} {params.energy} {params.ood}"
        " --extractor {input.extractor} {params.classifier} --reference {input.reference} --metrics {output.metrics} %s --log {log} {input.shards}"
        % THREADS_AND_GPUS


# Out-of-distribution detection with sets that have to be prepared, as a separate job: image quality does not wait for them.
rule ood:
    input:
        unpack(data_of),
        unpack(models_of),
        unpack(ood_of),
        records_of,
        settings=settings("results/{experiment}/{variant}/seed{seed}/evaluation/evaluation.yaml"),
    output:
        stored(directory("results/{experiment}/{variant}/seed{seed}/evaluation/ood")),
        figures="results/{experiment}/{variant}/seed{seed}/evaluation/ood.json",
    log:
        "results/{experiment}/{variant}/seed{seed}/evaluation/ood.log",
    conda:
        "../../environment.yml"
    threads: resource("evaluation", "threads")
    resources:
        **resources_of("evaluation"),
    params:
        energy=options("energy", "prior"),
        ood=lambda wildcards, input: " ".join(f"--ood {manifest}" for manifest in input.ood),
    shell:
        "python -m vaebm ood {input.settings} --data {input.data} --nvae {input.nvae} {params.energy} {params.ood}"
        " --output {output.figures} --pictures $(dirname {output.figures})/%s %s --log {log}" % ("ood" if STORAGE else "pictures", THREADS_AND_GPUS)


# The same of images that another program drew, without what needs a model.
rule foreign_evaluation:
    input:
        unpack(data_of),
        unpack(reference_of),
        settings=settings("results/{experiment}/{variant}/seed{seed}/evaluation/evaluation.yaml"),
        images=foreign_images,
    output:
        stored(directory("results/{experiment}/{variant}/seed{seed}/evaluation/pictures")),
        metrics="results/{experiment}/{variant}/seed{seed}/evaluation/metrics.json",
    log:
        "results/{experiment}/{variant}/seed{seed}/evaluation/evaluation.log",
    wildcard_constraints:
        experiment=experiments_of("images"),
    conda:
        "../../environment.yml"
    threads: resource("evaluation", "threads")
    resources:
        **resources_of("evaluation"),
    params:
        classifier=options("classifier"),
        # names, sizes and times of the files, because the time of a folder says nothing of a file that is written again
        state=lambda wildcards: foreign_state(Path(foreign_images(wildcards))),
    shell:
        "python -m vaebm evaluation {input.settings} --data {input.data} --extractor {input.extractor} {params.classifier}"
        " --reference {input.reference} --metrics {output.metrics} %s --log {log} {input.images:q}" % THREADS_AND_GPUS
