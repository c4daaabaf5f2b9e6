-- Prosody's own mod_http_file_share with hmac-file-server: paste this at the end of /etc/prosody/prosody.cfg.lua.
-- It needs Prosody 0.12 or newer, and no module from elsewhere. It signs a token that names the file's type, its
-- owner and when it expires; the daemon keeps all three. hmac-file-server.cfg.lua is the other way to do it.
--
-- A Component of its own is found by every client of every VirtualHost on this server whose
-- name it extends (upload.example.com for example.com); for others, name it in disco_items.
--
-- For several hosts write a Component for each, with a base URL and a secret of its own, and give each a [[Host]] table
-- in the daemon's config.toml, with the same UploadSubDir and Secret, and a StoreDir.

Component "upload.example.com" "http_file_share"
	-- Where the daemon is reached from outside, with its UploadSubDir.
	http_file_share_base_url = "https://upload.example.com/upload/"

	-- The daemon's Secret. `openssl rand -hex 32` prints one; the daemon refuses this placeholder.
	http_file_share_secret = "REPLACE-ME: openssl rand -hex 32"

	-- What a slot is given for, in bytes. Keep the daemon's MaxUploadSize at 0 or above this.
	http_file_share_size_limit = 100 * 1024 * 1024

	-- How much each user may upload in a day, in bytes.
	http_file_share_daily_quota = 1024 * 1024 * 1024

	-- How long a file is served, in seconds; -1 for ever.
	http_file_share_expires_after = 30 * 24 * 3600

	-- Leave http_file_share_global_quota unset: Prosody does not hear of files that are gone, so what it counts only
	-- grows, until it refuses every slot.
