package doctest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestLinks follows every link to a file of this repository, and its anchor.
// Links to elsewhere are not followed: the test must not need a network.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	count := 0
	for _, d := range documents(t) {
		for _, match := range link.FindAllStringSubmatch(d.prose(), -1) {
			target, anchor, _ := strings.Cut(match[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			count++
			path := filepath.Join(root, d.path)
			if target != "" {
				path = filepath.Join(filepath.Dir(path), target)
			}
			if generatedElsewhere(path) {
				continue
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s links to %s, which does not exist", d.path, match[1])
				continue
			}
			if anchor != "" && !hasAnchor(t, path, anchor) {
				t.Errorf("%s links to %s, and there is no such heading", d.path, match[1])
			}
		}
	}
	if count < 20 {
		t.Errorf("found %d links: the search is broken", count)
	}
}

// generatedElsewhere: `make bench` writes this one, and a fresh clone may not
// have it yet.
func generatedElsewhere(path string) bool {
	return filepath.Clean(path) == filepath.Join(root, "docs", "benchmarks.md")
}

func hasAnchor(t *testing.T, path, anchor string) bool {
	t.Helper()
	dropped := regexp.MustCompile("[^a-z0-9 _-]")
	for line := range strings.Lines(read(t, path).prose()) {
		title := strings.TrimLeft(line, "#")
		if title == line {
			continue
		}
		slug := dropped.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), "")
		if strings.ReplaceAll(slug, " ", "-") == anchor {
			return true
		}
	}
	return false
}
