rule benchmarks:
    input:
        metrics=runs("results/{experiment}/{variant}/seed{seed}/evaluation/metrics.json"),
        ood=runs("results/{experiment}/{variant}/seed{seed}/evaluation/ood.json", has_ood),
        pictures=pictures_of_runs(),
        paper=local("config/paper.yaml"),
    output:
        over_seeds=sorted(set(runs("results/{experiment}/{variant}/metrics.json"))),
        json="results/benchmarks.json",
        markdown="results/benchmarks.md",
        latex="results/benchmarks.tex",
        csv=report("results/benchmarks.csv", caption="../report/benchmarks.rst", category="Results"),
        page=report("results/report.html", caption="../report/page.rst", category="Results"),
    log:
        "results/benchmarks.log",
    conda:
        "../../environment.yml"
    threads: resource("benchmarks", "threads")
    resources:
        **resources_of("benchmarks"),
    shell:
        "python -m vaebm benchmarks {input.metrics} --paper {input.paper} --experiments config/experiments --results $(dirname {output.json}) --log {log}%s"
        % CHANGES


# Creates the parent run in MLflow first, so that the table can name it. No job depends on it.
rule tracking:
    output:
        update("results/{experiment}/tracking.json"),
    log:
        "results/{experiment}/tracking.log",
    priority: 1
    conda:
        "../../environment.yml"
    shell:
        "python -m vaebm track results/{wildcards.experiment} --log {log}"


# Mirrors all results to MLflow, as the last job.
rule track:
    input:
        "results/{experiment}/tracking.json",
        "results/benchmarks.json",
    output:
        touch("results/{experiment}/mirrored"),
    log:
        "results/{experiment}/track.log",
    conda:
        "../../environment.yml"
    shell:
        "python -m vaebm track results/{wildcards.experiment} --log {log}"


# MLflow fails no run, but the next run tries again what was not mirrored.
onsuccess:
    for name in EXPERIMENTS:
        if read_tracking(Path("results", name)).status != "mirrored":
            Path("results", name, "mirrored").unlink(missing_ok=True)
