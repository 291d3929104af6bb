-- description: Every row has at least one token with a label.
-- severity: error
SELECT row_id
FROM tokenized_dataset
WHERE len(labels) = 0 OR list_max(labels) < 0
