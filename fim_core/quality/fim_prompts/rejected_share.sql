-- description: Only a small share of the rows was rejected, apart from those that users did not accept.
-- severity: error
-- max_share: 0.1
-- note: (
--   SELECT 'By reason: ' || (
--     SELECT string_agg(format('{} {:,}', reason, rows), ', ' ORDER BY rows DESC, reason)
--     FROM (
--       SELECT reason, count(*) AS rows FROM rejected
--       WHERE reason NOT IN ('rejected_by_user', 'no_action', 'no_kept_text') GROUP BY reason
--     )
--   ) || '.' || coalesce(
--     ' Only ' || $placeholder || ' marks the cursor, but rows contain ' || (
--       SELECT string_agg(format('{} ({:,})', marker, rows), ', ' ORDER BY rows DESC, marker)
--       FROM (
--         SELECT unnest(string_split(substring(detail, strpos(detail, '; it holds ') + 11), ', ')) AS marker, count(*) AS rows
--         FROM rejected WHERE reason = 'missing_placeholder' AND contains(detail, '; it holds ') GROUP BY marker
--       )
--     ) || ': set data.placeholder.', ''
--   ) || ' All rejected rows with their reasons: ' || $rejected_path
--   )
-- total: (
--   SELECT count(*) FROM raw_completions
--   WHERE row_id NOT IN (
--     SELECT row_id FROM rejected WHERE reason IN ('rejected_by_user', 'no_action', 'no_kept_text')
--   )
--   )
-- parameter: placeholder = config.data.placeholder
-- parameter: rejected_path = tables.rejected
SELECT row_id
FROM rejected
WHERE reason NOT IN ('rejected_by_user', 'no_action', 'no_kept_text');

SELECT reason, count(*) AS rows, round(count(*) / (SELECT count(*) FROM raw_completions), 5) AS share
FROM rejected
GROUP BY reason
ORDER BY rows DESC, reason
