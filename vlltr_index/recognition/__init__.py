"""From pictures to explained answers: scorer, predictor, counterfactuals, search, and exported models."""
