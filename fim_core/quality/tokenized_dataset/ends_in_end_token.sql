-- description: Every row ends in a token that stops the model, so none was cut off.
-- severity: error
SELECT row_id
FROM tokenized_dataset
WHERE len(labels) = 0 OR NOT list_contains($end_ids::INTEGER[], labels[-1])
