"""Published scores and text metrics, as functions of texts and log-probs."""
