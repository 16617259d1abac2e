package pki

import (
	"cmp"
	"slices"
	"time"
)

// What servers tell agents of removed identities:
//
//	server                                        agent
//	ToldRemovals(all removals)  -- heartbeat -->  MergeRemovals(known, told)
//
// An agent knows no serials, so it is told role, name and a moment: what was
// issued up to then is refused, which stays true when the name joins again. That
// is also why an agent never forgets an entry while a certificate that it
// refuses could still be good: a list may come from a server that lags.
const (
	// MaxToldRemovals bounds what is told to agents, and what one remembers.
	MaxToldRemovals = 256

	// memberLeafLife is the longest that a certificate of a member can be good.
	memberLeafLife = max(ServerLeafLife, AgentLeafLife)
)

// ToldRemovals picks from all removals what agents need to know: members' that
// were removed while a certificate of before may still be good. Servers come
// first, and then the newest, so that only agents fall off at MaxToldRemovals:
// they get nothing from another agent but blobs of images, which have a digest.
func ToldRemovals(all []Removal, now time.Time) []Removal {
	return mergeRemovals(all, now)
}

// MergeRemovals is what an agent knows after it was told more. A moment that lies
// in the future is taken for now: nobody can be removed for good in advance.
func MergeRemovals(known, told []Removal, now time.Time) []Removal {
	all := slices.Clone(known)
	for _, r := range told {
		if latest := now.Add(ClockSkew); r.At.After(latest) {
			r.At = latest
		}
		all = append(all, r)
	}
	return mergeRemovals(all, now)
}

func mergeRemovals(all []Removal, now time.Time) []Removal {
	newest := map[subject]time.Time{}
	for _, r := range all {
		s := subject{r.Role, r.Name}
		old := !now.Before(r.At.Add(memberLeafLife + ClockSkew))
		if !r.Role.Member() || ValidateName(r.Role, r.Name) != nil || old {
			continue
		}
		if r.At.After(newest[s]) {
			newest[s] = r.At
		}
	}
	out := make([]Removal, 0, len(newest))
	for s, at := range newest {
		out = append(out, Removal{Role: s.role, Name: s.name, At: at, UpTo: true})
	}
	slices.SortFunc(out, compareTold)
	return out[:min(len(out), MaxToldRemovals)]
}

func compareTold(a, b Removal) int {
	server := func(r Removal) int {
		if r.Role == RoleServer {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(server(a), server(b)), b.At.Compare(a.At), cmp.Compare(a.Name, b.Name))
}
