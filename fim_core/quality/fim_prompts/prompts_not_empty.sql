-- description: There is at least one training row.
-- severity: error
-- total: 1
-- note: (
--   SELECT format('{:,} rows were rejected (see rejected_share), {:,} are held out, and no row is left for training.',
--   (SELECT count(*) FROM rejected), count(*) FILTER (WHERE split = 'eval'))
--   FROM fim_prompts HAVING count(*) FILTER (WHERE split = 'train') = 0
--   )
SELECT 'train' AS split
WHERE NOT EXISTS (FROM fim_prompts WHERE split = 'train')
