-- description: There is at least one tokenized training row.
-- severity: error
-- total: 1
-- note: (
--   SELECT format('{:,} rows are too_long: they have {:,} to {:,} tokens, half of them more than {:,}, and data.max_length is {:,}.',
--   count(*), min(tokens), max(tokens), median(tokens)::BIGINT, $max_length::BIGINT) || ' They are in ' || $rejected_path
--   FROM (SELECT TRY_CAST(regexp_extract(detail, '^[0-9]+') AS BIGINT) AS tokens FROM not_tokenized WHERE reason = 'too_long')
--   HAVING count(*) > 0 AND NOT EXISTS (FROM tokenized_dataset WHERE split = 'train')
--   )
-- parameter: max_length = config.data.max_length
-- parameter: rejected_path = tables.not_tokenized
SELECT 'train' AS split
WHERE NOT EXISTS (FROM tokenized_dataset WHERE split = 'train')
