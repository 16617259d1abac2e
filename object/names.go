package object

import (
	"fmt"
	"strings"
)

// Limits of names, from RFC 1123 and Kubernetes.
const (
	maxLabelLength      = 63
	maxSubdomainLength  = 253
	maxLabelValueLength = 63
	maxPortNameLength   = 15
)

// The problem functions return "" for a good value, else what is allowed.

const (
	allowedDNSLabel     = "lower-case letters, digits and -, beginning and ending with a letter or digit, at most 63 characters"
	allowedDNS1035      = "lower-case letters, digits and -, beginning with a letter, ending with a letter or digit, at most 63 characters"
	allowedDNSSubdomain = "lower-case letters, digits, - and ., every part beginning and ending with a letter or digit, at most 253 characters"
	allowedLabelName    = "letters, digits, -, _ and ., beginning and ending with a letter or digit, at most 63 characters"
	allowedLabelKey     = allowedLabelName + "; before it, if wanted, a DNS name and a slash"
	allowedLabelValue   = allowedLabelName + ", or empty"
	allowedPortName     = "lower-case letters, digits and single -, at least one letter, at most 15 characters"
	allowedEnvName      = "printable ASCII characters except ="
	allowedDataKey      = "letters, digits, -, _ and ., at most 253 characters, not . or .. and not beginning with .."
)

func dnsLabelProblem(s string) string {
	if len(s) > maxLabelLength || !isDNSLabel(s) {
		return allowedDNSLabel
	}
	return ""
}

func dns1035Problem(s string) string {
	if len(s) > maxLabelLength || !isDNSLabel(s) || !isLower(s[0]) {
		return allowedDNS1035
	}
	return ""
}

func dnsSubdomainProblem(s string) string {
	if len(s) > maxSubdomainLength {
		return allowedDNSSubdomain
	}
	for part := range strings.SplitSeq(s, ".") {
		if !isDNSLabel(part) {
			return allowedDNSSubdomain
		}
	}
	return ""
}

func labelKeyProblem(s string) string {
	if prefix, name, found := strings.Cut(s, "/"); found {
		if prefix == "" || dnsSubdomainProblem(prefix) != "" {
			return allowedLabelKey
		}
		s = name
	}
	if !isLabelName(s) {
		return allowedLabelKey
	}
	return ""
}

func labelValueProblem(s string) string {
	if s != "" && !isLabelName(s) {
		return allowedLabelValue
	}
	return ""
}

// portNameProblem follows RFC 6335, section 5.1, as Kubernetes does.
func portNameProblem(s string) string {
	good := s != "" && len(s) <= maxPortNameLength && isDNSLabel(s) && !strings.Contains(s, "--") && strings.IndexFunc(s, isLowerRune) >= 0
	if !good {
		return allowedPortName
	}
	return ""
}

func envNameProblem(s string) string {
	if s == "" {
		return allowedEnvName
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' || s[i] == '=' {
			return allowedEnvName
		}
	}
	return ""
}

func dataKeyProblem(s string) string {
	if s == "" || len(s) > maxSubdomainLength || s == "." || strings.HasPrefix(s, "..") {
		return allowedDataKey
	}
	for i := range len(s) {
		if !isAlphanumeric(s[i]) && !strings.Contains("-_.", s[i:i+1]) {
			return allowedDataKey
		}
	}
	return ""
}

func isDNSLabel(s string) bool {
	if s == "" || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if !isLower(s[i]) && !isDigit(s[i]) && s[i] != '-' {
			return false
		}
	}
	return true
}

func isLabelName(s string) bool {
	if s == "" || len(s) > maxLabelValueLength || !isAlphanumeric(s[0]) || !isAlphanumeric(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if !isAlphanumeric(s[i]) && s[i] != '-' && s[i] != '_' && s[i] != '.' {
			return false
		}
	}
	return true
}

func isLower(c byte) bool     { return c >= 'a' && c <= 'z' }
func isLowerRune(r rune) bool { return r >= 'a' && r <= 'z' }
func isDigit(c byte) bool     { return c >= '0' && c <= '9' }
func isAlphanumeric(c byte) bool {
	return isLower(c) || isDigit(c) || c >= 'A' && c <= 'Z'
}

// NameProblem tells why a name is not allowed for a kind, "" when it is.
func NameProblem(kind Kind, name string) string {
	if name == "" {
		return "a name"
	}
	switch kind.Name {
	case "Namespace":
		return dnsLabelProblem(name)
	case "Service":
		return dns1035Problem(name)
	}
	return dnsSubdomainProblem(name)
}

// quoted is what was found, for a violation, shortened to a readable length.
func quoted(s string) string {
	const longest = 80
	if len(s) > longest {
		return fmt.Sprintf("%q… (%d bytes)", s[:longest], len(s))
	}
	return fmt.Sprintf("%q", s)
}
