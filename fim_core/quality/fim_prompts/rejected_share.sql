-- description: Only a small share of the rows had to be rejected.
-- severity: error
-- max_share: 0.1
-- total: (SELECT count(*) FROM raw_completions)
SELECT row_id
FROM rejected;

SELECT reason, count(*) AS rows, round(count(*) / (SELECT count(*) FROM raw_completions), 5) AS share
FROM rejected
GROUP BY reason
ORDER BY rows DESC, reason
