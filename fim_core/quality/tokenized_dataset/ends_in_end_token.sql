-- description: Every row ends in the end token, so no row was truncated.
-- severity: error
-- parameter: end_id = fim_prompts.recipe.fim_tokens.end_id
SELECT row_id
FROM tokenized_dataset
WHERE len(labels) = 0 OR labels[-1] != $end_id
