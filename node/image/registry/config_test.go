package registry

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseConfigRefusals(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"registries: {a.example: {mirror: [b]}}":                        "not found in type",
		"registries: {\"https://a.example\": {}}":                       "want a host",
		"registries: {\"a.example/x\": {}}":                             "want a host",
		"registries: {a.example: {mirrors: [\"https://b.example\"]}}":   "without a scheme",
		"registries: {a.example: {username: x}}":                        "come together",
		"registries: {a.example: {caFile: /nonexistent}}":               "caFile",
		"registries: {a.example: {caFile: " + empty + "}}":              "no certificate",
		"registries: {a.example: {username: x, passwordFile: /absent}}": "passwordFile",
		"registries: [": "yaml",
	} {
		if _, err := ParseConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	for _, text := range []string{"", "registries: {}", "registries: {docker.io: {mirrors: [\"m.example:5000/hub\"]}, \"*\": {blocked: true}}"} {
		if _, err := ParseConfig([]byte(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestConfigOfAHost(t *testing.T) {
	config, err := ParseConfig([]byte("registries: {docker.io: {http: true}, \"*\": {blocked: true}}"))
	if err != nil {
		t.Fatal(err)
	}
	for host, http := range map[string]bool{"index.docker.io": true, "docker.io": true, "registry-1.docker.io": true, "other.example": false} {
		if h, named := config.of(host); h.HTTP != http || h.Blocked == http || named != http {
			t.Errorf("%s: %+v, %v", host, h, named)
		}
	}
}

func TestCredentialsMatchAsTheKubeletsDo(t *testing.T) {
	secret := `{"auths": {
		"https://index.docker.io/v1/": {"auth": "aHViOng="}, "*.example": {"auth": "Z2xvYjp4"}, "quay.example": {"auth": "cXVheTp4"},
		"quay.example/team": {"auth": "dGVhbTp4"}, "quay.example:5000": {"auth": "cG9ydDp4"}, "a.*.example": {"username": "deep", "password": "x"}
	}}`
	credentials, err := ParseCredentials([][]byte{[]byte(secret), []byte(`{"old.example": {"auth": "b2xkOng="}}`)})
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]string{
		"index.docker.io library/x": "hub", "quay.example x": "quay glob", "quay.example team/x": "team quay glob", "quay.example teams/x": "quay glob",
		"quay.example:5000 team/x": "port", "other.example x": "glob", "a.b.example x": "deep", "b.a.example x": "", "example x": "", "old.example x": "old glob",
	} {
		host, repository, _ := strings.Cut(target, " ")
		var got []string
		for _, auth := range credentials.match(host, repository) {
			got = append(got, auth.Username)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", target, got, want)
		}
	}
}

func TestCheckIP(t *testing.T) {
	for _, c := range []struct {
		own, named, local bool
		ip                string
		ok                bool
	}{
		{ip: "203.0.113.1", ok: true}, {ip: "10.0.0.1", ok: true}, {ip: "127.0.0.1"}, {ip: "::1"}, {ip: "::ffff:127.0.0.1"},
		{ip: "169.254.169.254"}, {ip: "fe80::1"}, {ip: "fd00:ec2::254"}, {ip: "100.100.100.200"}, {ip: "168.63.129.16"}, {ip: "0.0.0.0"}, {ip: "224.0.0.1"},
		{own: true, ip: "127.0.0.1", ok: true}, {own: true, ip: "169.254.169.254"}, {own: true, named: true, ip: "169.254.1.1", ok: true},
		{named: true, ip: "169.254.1.1"}, {local: true, ip: "127.0.0.1", ok: true}, {local: true, ip: "169.254.169.254"},
	} {
		g := &guard{named: c.named, local: c.local}
		if err := g.checkIP(c.own, netip.MustParseAddr(c.ip)); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func FuzzParseCredentials(f *testing.F) {
	f.Add([]byte(`{"auths": {"a.example": {"auth": "YTpi"}}}`), "a.example", "x")
	f.Add([]byte(`{"auths": {"[a.example": {}}}`), "[a", "")
	f.Fuzz(func(_ *testing.T, secret []byte, host, repository string) {
		credentials, _ := ParseCredentials([][]byte{secret})
		credentials.match(host, repository)
	})
}
