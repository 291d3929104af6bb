-- description: If rows are to be held out, there is at least one, so that learning can be told from memorising.
-- severity: error
-- total: 1
-- note: (
--   SELECT CASE
--   WHEN $asked::DOUBLE IS NOT DISTINCT FROM 0 THEN 'No rows are to be held out: data.eval_fraction is 0.'
--   WHEN EXISTS (FROM tokenized_dataset WHERE split = 'eval') THEN NULL
--   WHEN $nothing_held_out <> '' THEN $nothing_held_out
--   ELSE format('All {:,} held-out rows are longer than data.max_length ({:,} tokens).', (SELECT count(*) FROM fim_prompts WHERE split = 'eval'), $max_length::BIGINT)
--   END
--   )
-- parameter: asked = fim_prompts.counts.asked_share
-- parameter: max_length = config.data.max_length
-- parameter: nothing_held_out = fim_prompts.counts.nothing_held_out
SELECT 'eval' AS split
WHERE $asked::DOUBLE IS DISTINCT FROM 0 AND NOT EXISTS (FROM tokenized_dataset WHERE split = 'eval')
