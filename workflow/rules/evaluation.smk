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


rule reference:
    input:
        unpack(data_of),
        classifier="results/{experiment}/classifier/model.pt",
    output:
        "results/{experiment}/reference/classifier.npz",
    log:
        "results/{experiment}/reference/classifier.log",
    conda:
        "../../environment.yml"
    threads: need("classifier", "threads")
    resources:
        cpus_per_task=need("classifier", "threads"),
        mem_mb=need("classifier", "mem_mb"),
        runtime=need("classifier", "runtime"),
    shell:
        "python -m vaebm reference --data {input.data} --classifier {input.classifier} --output {output}" " --threads {resources.cpus_per_task} --log {log}"


rule evaluation:
    input:
        unpack(data_of),
        unpack(models_of),
        unpack(ood_of),
        settings="results/{experiment}/{variant}/seed{seed}/evaluation/evaluation.yaml",
        classifier="results/{experiment}/classifier/model.pt",
        reference="results/{experiment}/reference/classifier.npz",
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
        mem_mb=need("evaluation", "mem_mb"),
        runtime=need("evaluation", "runtime"),
    params:
        energy=energy_option,
        ood=ood_options,
    shell:
        "python -m vaebm evaluation {input.settings} --data {input.data} --nvae {input.nvae} {params.energy} {params.ood}"
        " --classifier {input.classifier} --reference {input.reference} --metrics {output.metrics}"
        " --threads {resources.cpus_per_task} --log {log} {input.shards}"
