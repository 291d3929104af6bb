-- description: There are held-out rows, so that learning can be told from memorising.
-- severity: warn
-- total: 1
SELECT 'eval' AS split
WHERE NOT EXISTS (FROM tokenized_dataset WHERE split = 'eval')
