-- description: Every token id is in the vocabulary.
-- severity: error
-- parameter: vocab_size = fim_prompts.counts.vocab_size
SELECT row_id
FROM tokenized_dataset
WHERE list_min(input_ids) < 0 OR list_max(input_ids) >= $vocab_size
