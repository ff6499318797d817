# Puts a settings file, which the Snakefile writes where it is started, into the storage.
rule stored_settings:
    input:
        lambda wildcards: local(WRITTEN.get(path := f"results/{wildcards.settings}.yaml", path)),
    output:
        "results/{settings}.yaml",
    shell:
        "cp {input} {output}"
