"""Stage `evaluation`: metrics of samples, likelihoods and scores; its entry is `stage.run`."""
