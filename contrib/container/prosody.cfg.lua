-- Prosody for compose.yaml: change example.com to your domain.

daemonize = false
pidfile = "/tmp/prosody.pid"
data_path = "/srv/prosody"
log = { info = "*console" }
certificates = "/etc/prosody/certs"
modules_enabled = {
	"admin_shell", "blocklist", "bookmarks", "carbons", "csi_simple", "dialback", "disco", "pep", "ping", "private",
	"roster", "saslauth", "smacks", "tls", "vcard4", "vcard_legacy", "version"
}

VirtualHost "example.com"

-- The same as in ../prosody/file-share.cfg.lua, which says more.
Component "upload.example.com" "http_file_share"
	http_file_share_base_url = "https://upload.example.com/upload/"
	http_file_share_secret = FileLine("/run/secrets/hmac-file-server")
	http_file_share_size_limit = 100 * 1024 * 1024
	http_file_share_daily_quota = 1024 * 1024 * 1024
	http_file_share_expires_after = 30 * 24 * 3600
