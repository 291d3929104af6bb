"""Reading rows: exports of every accepted shape become one raw table, and an INPUT becomes a completion."""
