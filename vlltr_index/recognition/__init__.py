"""From pictures to explained answers: scorer, model bundle, predictor, counterfactuals, search, exported models."""
