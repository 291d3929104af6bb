-- description: Users accepted or edited some of the completions, so that rows are left to train on.
-- severity: warn
-- max_share: 0.95
-- note: (
--   SELECT 'By reason: ' || string_agg(format('{} {:,}', reason, rows), ', ' ORDER BY rows DESC, reason) || '.'
--   FROM (
--     SELECT reason, count(*) AS rows FROM rejected
--     WHERE reason IN ('rejected_by_user', 'no_action', 'no_kept_text') GROUP BY reason
--   )
--   )
-- total: (SELECT count(*) FROM raw_completions)
SELECT row_id
FROM rejected
WHERE reason IN ('rejected_by_user', 'no_action', 'no_kept_text')
