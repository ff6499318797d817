rule nvae:
    input:
        unpack(data_of),
        settings=settings("results/{experiment}/nvae/seed{seed}/nvae.yaml"),
    output:
        model="results/{experiment}/nvae/seed{seed}/model.safetensors",
        training="results/{experiment}/nvae/seed{seed}/training.json",
        history="results/{experiment}/nvae/seed{seed}/history.jsonl",
        curves=report(
            "results/{experiment}/nvae/seed{seed}/pictures/curves.png",
            caption="../report/nvae.rst",
            category="Training",
            subcategory="{experiment}",
            labels={"stage": "nvae", "seed": "{seed}"},
        ),
    log:
        "results/{experiment}/nvae/seed{seed}/nvae.log",
    priority: 2  # trainings first: they are on the longest path
    retries: 3  # a training stops before its time limit, and the next attempt resumes it
    conda:
        "../../environment.yml"
    threads: resource("nvae", "threads")
    resources:
        **resources_of("nvae"),
    shell:
        "python -m vaebm nvae {input.settings} --data {input.data} --model {output.model}"
        " --threads {resources.cpus_per_task} --gpus {resources.gpu} --time-limit {resources.runtime} --log {log}"
