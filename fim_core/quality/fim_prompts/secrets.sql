-- description: No row contains text that looks like a key, token or password. Set `data.mask_secrets` to mask it.
-- severity: warn
SELECT row_id
FROM fim_prompts
WHERE regexp_matches(
    -- Masked secrets are not counted.
    replace(concat_ws(chr(10), prompt, response), 'MASKED_SECRET', ''),
    '\b(AKIA|ASIA)[0-9A-Z]{16}\b'
    || '|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*[0-9A-Za-z]{16}'
    || '|\bgh[pousr]_[0-9A-Za-z]{36,}'
    || '|\bxox[abprs]-[0-9A-Za-z-]{10,}'
    || '|\bsk-[0-9A-Za-z_-]{20,}'
    || '|\bAIza[0-9A-Za-z_-]{35}\b'
    || '|\beyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}\.'
    || '|(?i:password|passwd|secret|secret_key|access_key|api_?key|sas_token|private_key)\s*(=>?|:)\s*''[^''\n]{6,}'''
)
