"""Other servers' HTTP APIs, one file each, as thin adapters over the jobs of `/v1/videos`; `table` lists them."""
