-- description: No row has more than data.max_length tokens.
-- severity: error
-- parameter: max_length = config.data.max_length
SELECT row_id
FROM tokenized_dataset
WHERE len(input_ids) > $max_length
