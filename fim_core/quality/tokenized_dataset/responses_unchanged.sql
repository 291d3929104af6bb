-- description: Every response decodes from its tokens unchanged. Where the tokenizer normalises text or lacks characters, the
--   model learns to write the decoded text, and evaluation compares with that text.
-- severity: warn
-- total: (SELECT count(*) FROM tokenized_dataset)
SELECT row_id
FROM changed
