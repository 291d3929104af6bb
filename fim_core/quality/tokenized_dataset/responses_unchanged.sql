-- description: Every response comes back from its tokens as it was written. Where the tokenizer normalises text or lacks
--   characters, the model can only learn to write what the tokenizer makes of it; evaluation compares with that.
-- severity: warn
-- total: (SELECT count(*) FROM tokenized_dataset)
SELECT row_id
FROM changed
