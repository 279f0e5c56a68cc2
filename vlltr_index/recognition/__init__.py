"""From pictures to explained answers: scorer, predictor, counterfactuals, search, exported models."""
