-- description: Few rows contain text that looks like an e-mail address. Set `data.mask_secrets` to mask it.
-- severity: warn
-- max_share: 0.01
SELECT row_id
FROM fim_prompts
WHERE (contains(prompt, '@') OR contains(response, '@'))
    AND regexp_matches(
        replace(concat_ws(chr(10), prompt, response), 'masked@example.com', ''),
        '[0-9A-Za-z._%+-]+@[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*\.[A-Za-z]{2,}'
    )
