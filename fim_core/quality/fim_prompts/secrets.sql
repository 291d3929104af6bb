-- description: Nothing looks like a key, token or password. Rows that do are counted; `data.mask_secrets` hides them.
-- severity: warn
SELECT row_id
FROM fim_prompts
WHERE regexp_matches(
    concat_ws(chr(10), prompt, response),
    '\bA(KIA|SIA)[0-9A-Z]{16}\b'
    || '|-----BEGIN [A-Z ]*PRIVATE KEY-----'
    || '|\bgh[pousr]_[0-9A-Za-z]{30,}'
    || '|\bsk-[0-9A-Za-z_-]{20,}'
    || '|\beyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}'
    || '|(?i:aws_secret_key|secret_access_key|password|passwd|client_secret|sas_token)\s*(=>?|:)\s*''[^'']{6,}'''
)
