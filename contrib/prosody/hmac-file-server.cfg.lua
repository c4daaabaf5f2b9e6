-- Prosody with hmac-file-server: paste this at the end of /etc/prosody/prosody.cfg.lua.
-- It needs mod_http_upload_external, from prosody-modules or `prosodyctl install`; not mod_http_file_share, which is
-- Prosody's own. The module stands in this line alone, and not in modules_enabled.
--
-- A Component of its own is found by every client of every VirtualHost on this server whose
-- name it extends (upload.example.com for example.com); for others, name it in disco_items.
--
-- For several hosts write a Component for each, with a base URL and a secret of its own, and give each a [[Host]] table
-- in the daemon's config.toml, with the same UploadSubDir and Secret, and a StoreDir.

Component "upload.example.com" "http_upload_external"
	-- Where the daemon is reached from outside, with its UploadSubDir. It must end with a slash.
	http_upload_external_base_url = "https://upload.example.com/upload/"

	-- The daemon's Secret. `openssl rand -hex 32` prints one; the daemon refuses this placeholder.
	http_upload_external_secret = "REPLACE-ME: openssl rand -hex 32"

	-- "v2" signs the type of the file too, so that it is served with the type its sender named.
	-- "v1" does not; the daemon takes either without being told.
	http_upload_external_protocol = "v2"

	-- What a slot is given for, in bytes. Keep the daemon's MaxUploadSize at 0 or above this.
	http_upload_external_file_size_limit = 100 * 1024 * 1024
