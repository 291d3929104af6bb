-- description: Few rows repeat the input and the output of another one. Duplicates weigh double in training.
-- severity: warn
-- max_share: 0.05
SELECT row_id
FROM raw_completions
WHERE input <> ''
QUALIFY row_number() OVER (PARTITION BY md5_number(input), md5_number(output) ORDER BY row_id) > 1
