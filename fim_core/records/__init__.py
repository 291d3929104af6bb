"""Reading exports of all supported formats into one raw table, and parsing its rows."""
