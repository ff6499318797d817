"""Stage `evaluation`: how good the samples, the likelihoods and the scores are; `stage.run` is the whole of it."""
