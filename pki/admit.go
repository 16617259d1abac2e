package pki

import (
	"crypto/sha256"
	"crypto/x509"
	"time"
)

// JoinRequest is what a joiner sends over the join listener, besides the token.
type JoinRequest struct {
	Role Role
	Name string
	CSR  []byte // DER
	SANs SANs   // servers only: their addresses
}

// Holder is what the cluster has on record of whoever joined under a role and
// name. The key's hash is the anchor: it stays the same through all renewals.
type Holder struct {
	Role    Role
	Name    string
	KeyHash Hash
	TokenID string // that it joined with; empty for the first server
}

// JoinCase is all that the decision about a join depends on.
type JoinCase struct {
	Token   Token
	Request JoinRequest
	Record  *TokenRecord // nil if there is none with the token's id
	Holder  *Holder      // nil if nobody holds the role and name, or it was removed
	Removal *Removal     // nil if the role and name were not removed
}

// Admission is a join or a renewal that was granted. Whoever asked for it
// commits Record and Holder, with the revisions they were read at as
// preconditions, before handing out the certificate: so a token for one use
// admits one joiner even when two servers decide at once.
type Admission struct {
	Identity Identity
	CertPEM  []byte
	Holder   Holder

	// Record has the use counted; it is nil for a renewal, and for a Repeat.
	Record *TokenRecord

	// Repeat is true if the same key joined under the same name with the same
	// token before: its answer was lost. It costs no further use.
	Repeat bool

	// Readmits is true if the name was removed before. The name's removal must
	// go in the same transaction; the removals of its serials stay.
	Readmits bool
}

// DecideJoin says whether a join is granted: nil or a refusal. Only who has
// the token's secret learns anything beyond ErrTokenUnknown.
func DecideJoin(c JoinCase, now time.Time) error {
	if !c.Token.matches(c.Record) {
		return refuse(ErrTokenUnknown, "join token %s is unknown to this cluster, or its secret is wrong; it may have been deleted: balsa token list", c.Token.ID)
	}
	if err := c.Record.alive(now); err != nil {
		return err
	}
	role, err := ParseRole(string(c.Request.Role))
	if err != nil {
		return err
	}
	if role != c.Record.Role {
		return refuse(ErrWrongRole, "join token %s is for role %s, not %s; make one for it: balsa token create --role %s", c.Record.ID, c.Record.Role, role, role)
	}
	if err := ValidateName(role, c.Request.Name); err != nil {
		return err
	}
	if c.Removal != nil && !c.Record.Created.After(c.Removal.At) {
		return refuse(ErrRemoved, "%s/%s was removed at %s and join token %s is older; to let it in again make a new token: balsa token create --role %s", role, c.Request.Name, stamp(c.Removal.At), c.Record.ID, c.Record.Role)
	}
	repeat, err := c.repeats()
	if err != nil || repeat {
		return err
	}
	return c.Record.Usable(now)
}

// repeats reports whether this join was granted before, or refuses because
// somebody else has the name: a token must not take over an identity in use.
func (c JoinCase) repeats() (bool, error) {
	if c.Holder == nil {
		return false, nil
	}
	csr, err := parseCSR(c.Request.CSR, c.Request.Role, c.Request.Name)
	if err != nil {
		return false, err
	}
	if c.Holder.KeyHash == sha256.Sum256(csr.RawSubjectPublicKeyInfo) && c.Holder.TokenID == c.Record.ID {
		return true, nil
	}
	return false, refuse(ErrNameTaken, "the name %s/%s is taken: it joined with another key or another token; choose another name, or remove the old one first", c.Request.Role, c.Request.Name)
}

// Admit decides about a join and signs the certificate.
func (ca *CA) Admit(c JoinCase, now time.Time) (*Admission, error) {
	if err := DecideJoin(c, now); err != nil {
		return nil, err
	}
	leaf, err := ca.Sign(SignRequest{CSR: c.Request.CSR, Role: c.Request.Role, Name: c.Request.Name, SANs: c.Request.SANs}, now)
	if err != nil {
		return nil, err
	}
	a, err := ca.admission(leaf, c.Record.ID)
	if err != nil {
		return nil, err
	}
	a.Repeat, a.Readmits = c.Holder != nil, c.Removal != nil
	if !a.Repeat {
		counted := *c.Record
		counted.Uses++
		a.Record = &counted
	}
	return a, nil
}

func (ca *CA) admission(leaf *x509.Certificate, tokenID string) (*Admission, error) {
	id, err := FromCertificate(leaf, ca.clusterID)
	if err != nil {
		return nil, err
	}
	return &Admission{
		Identity: id,
		CertPEM:  certPEM(leaf.Raw),
		Holder:   Holder{Role: id.Role, Name: id.Name, KeyHash: KeyHash(leaf), TokenID: tokenID},
	}, nil
}
