package daemon

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/balsa-run/balsa/pki"
)

func TestAgentsPortByRole(t *testing.T) {
	next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	handler := portHandler(next, nil, newAgentRegistry())
	for _, c := range []struct {
		role          pki.Role
		metrics, rest int
	}{
		{"", http.StatusUnauthorized, http.StatusUnauthorized},
		{pki.RoleServer, http.StatusOK, http.StatusTeapot},
		{pki.RoleAgent, http.StatusForbidden, http.StatusForbidden},
		{pki.RoleAdmin, http.StatusOK, http.StatusForbidden},
		{pki.RoleReader, http.StatusOK, http.StatusForbidden},
	} {
		for path, want := range map[string]int{"/metrics": c.metrics, "/balsa.internal.v1.AgentService/Exec": c.rest} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
			if c.role != "" {
				r = r.WithContext(pki.WithIdentity(r.Context(), pki.Identity{Role: c.role, Name: "x"}))
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("%s as %q: %d, want %d", path, c.role, w.Code, want)
			}
			if want == http.StatusOK && !strings.Contains(w.Body.String(), "go_goroutines") {
				t.Errorf("%s as %s: %s", path, c.role, w.Body)
			}
		}
	}
}
