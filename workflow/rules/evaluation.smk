rule classifier:
    input:
        unpack(judged_data_of),
        settings="results/{experiment}/classifier/classifier.yaml",
    output:
        "results/{experiment}/classifier/model.pt",
    log:
        "results/{experiment}/classifier/classifier.log",
    conda:
        "../../environment.yml"
    threads: need("classifier", "threads")
    resources:
        cpus_per_task=need("classifier", "threads"),
        mem_mb=need("classifier", "mem_mb"),
        runtime=need("classifier", "runtime"),
    shell:
        "python -m vaebm classifier {input.settings} --data {input.data} --model {output} --threads {resources.cpus_per_task} --log {log}"


# Before the trainings: weights that cannot be fetched should not be noticed after days.
rule reference:
    input:
        unpack(data_of),
        unpack(classifier_of),
        settings=ancient("results/{experiment}/reference/{extractor}.yaml"),  # where weights stand makes nothing anew, but see params
    output:
        "results/{experiment}/reference/{extractor}.npz",
    log:
        "results/{experiment}/reference/{extractor}.log",
    priority: 3
    conda:
        "../../environment.yml"
    threads: need("evaluation", "threads")
    resources:
        cpus_per_task=need("evaluation", "threads"),
        nodes=1,
        gpu=need("evaluation", "gpu"),
        mem_mb=need("evaluation", "mem_mb"),
        runtime=need("evaluation", "runtime"),
    params:
        classifier=classifier_option,
        weights=weights_of,
    shell:
        "python -m vaebm reference {input.settings} --data {input.data} {params.classifier} --output {output}"
        " --threads {resources.cpus_per_task} --gpus {resources.gpu} --log {log}"


rule evaluation:
    input:
        unpack(data_of),
        unpack(models_of),
        unpack(reference_of),
        unpack(ood_of),
        settings="results/{experiment}/{variant}/seed{seed}/evaluation/evaluation.yaml",
        shards=shards_of,
    output:
        metrics="results/{experiment}/{variant}/seed{seed}/evaluation/metrics.json",
    log:
        "results/{experiment}/{variant}/seed{seed}/evaluation/evaluation.log",
    conda:
        "../../environment.yml"
    threads: need("evaluation", "threads")
    resources:
        cpus_per_task=need("evaluation", "threads"),
        nodes=1,
        gpu=need("evaluation", "gpu"),
        mem_mb=need("evaluation", "mem_mb"),
        runtime=need("evaluation", "runtime"),
    params:
        energy=energy_option,
        classifier=classifier_option,
        ood=ood_options,
    shell:
        "python -m vaebm evaluation {input.settings} --data {input.data} --nvae {input.nvae} {params.energy} {params.ood}"
        " --extractor {input.extractor} {params.classifier} --reference {input.reference} --metrics {output.metrics}"
        " --threads {resources.cpus_per_task} --gpus {resources.gpu} --log {log} {input.shards}"
