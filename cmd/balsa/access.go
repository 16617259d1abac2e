package main

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/internal/atomicfile"
	"github.com/balsa-run/balsa/pki"
)

func (a *app) tokenCommand() *cobra.Command {
	command := &cobra.Command{Use: "token", Short: "Make, list and revoke the tokens that let servers and nodes in"}
	command.AddCommand(a.tokenCreate(), a.tokenList(), a.tokenRevoke())
	return command
}

func (a *app) tokenCreate() *cobra.Command {
	request := &balsav1.CreateTokenRequest{}
	var ttl time.Duration
	command := &cobra.Command{
		Use: "create --role ROLE", Short: "Make a join token and print it", Args: cobra.NoArgs,
		Long:    "Create prints the token and nothing else. It is shown this once: the cluster keeps only a hash.",
		Example: "  balsa token create --role agent\n  balsa token create --role agent --uses 20 --ttl 24h --description rack-7",
		RunE: func(command *cobra.Command, _ []string) error {
			if request.GetRole() == "" {
				return &usageError{errors.New("give --role server or --role agent")}
			}
			request.TtlSeconds = int64(ttl.Seconds())
			c, err := a.connect()
			if err != nil {
				return err
			}
			response, err := c.Cluster.CreateToken(command.Context(), request)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.out, response.GetToken())
			return nil
		},
	}
	flags := command.Flags()
	flags.StringVar(&request.Role, "role", "", "server or agent")
	flags.DurationVar(&ttl, "ttl", time.Hour, "how long it is good")
	flags.Uint32Var(&request.MaxUses, "uses", 1, "how many may join with it")
	flags.StringVar(&request.Description, "description", "", "what it is for")
	return command
}

func (a *app) tokenList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tokens", Args: cobra.NoArgs, Aliases: []string{"ls"}, Example: "  balsa token list",
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			response, err := c.Cluster.ListTokens(command.Context(), &balsav1.ListTokensRequest{})
			if err != nil {
				return err
			}
			writer := tabwriter.NewWriter(a.out, 0, 8, 3, ' ', 0)
			fmt.Fprintln(writer, "ID\tROLE\tUSES\tEXPIRES\tSTATE\tDESCRIPTION")
			for _, token := range response.GetTokens() {
				fmt.Fprintf(writer, "%s\t%s\t%d/%d\t%s\t%s\t%s\n", token.GetId(), token.GetRole(), token.GetUses(), token.GetMaxUses(),
					token.GetExpires().AsTime().Format(time.DateTime), tokenState(token), token.GetDescription())
			}
			return writer.Flush()
		},
	}
}

func tokenState(token *balsav1.Token) string {
	switch {
	case token.GetRevoked():
		return "revoked"
	case token.GetExpires().AsTime().Before(time.Now()):
		return "expired"
	case token.GetUses() >= token.GetMaxUses():
		return "used up"
	}
	return "good"
}

func (a *app) tokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "Refuse a token from now on", Args: cobra.ExactArgs(1), Example: "  balsa token revoke k3f9x2",
		RunE: func(command *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if _, err := c.Cluster.RevokeToken(command.Context(), &balsav1.RevokeTokenRequest{Id: args[0]}); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "token %s revoked\n", args[0])
			return nil
		},
	}
}

func (a *app) userCommand() *cobra.Command {
	command := &cobra.Command{Use: "user", Short: "Give people and applications access, and take it away"}
	command.AddCommand(a.userCreate(), a.userList(), a.userRemove())
	return command
}

func (a *app) userCreate() *cobra.Command {
	var role, out, pemDir string
	var ttl time.Duration
	command := &cobra.Command{
		Use: "create NAME --role ROLE", Short: "Make a user and write its client configuration", Args: cobra.ExactArgs(1),
		Long: `Create makes a key on this machine, has the cluster sign a certificate for it, and
writes both to a file for --config, or with --pem to files as etcd's clients and
other programs want them. The key is nowhere else.`,
		Example: "  balsa user create alice --role admin -f alice.yaml\n  balsa user create dashboard --role reader --ttl 720h\n  balsa user create shop --role admin --pem /etc/shop/tls",
		RunE: func(command *cobra.Command, args []string) error {
			if role == "" {
				return &usageError{errors.New("give --role admin or --role reader")}
			}
			if pemDir != "" { // before anything is signed
				if err := os.MkdirAll(pemDir, 0o700); err != nil {
					return fmt.Errorf("--pem: %w", err)
				}
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			key, csr, err := newKey(args[0])
			if err != nil {
				return err
			}
			response, err := c.Cluster.CreateIdentity(command.Context(), &balsav1.CreateIdentityRequest{
				Name: args[0], Role: role, Csr: csr, TtlSeconds: int64(ttl.Seconds()),
			})
			if err != nil {
				return err
			}
			if pemDir != "" {
				if err := a.writePEM(pemDir, response, key); err != nil || out == "" {
					return err
				}
			}
			return a.writeUser(cmp.Or(out, args[0]+".yaml"), response, key)
		},
	}
	flags := command.Flags()
	flags.StringVar(&role, "role", "", "admin (may do everything) or reader (sees everything but the values of Secrets)")
	flags.StringVarP(&out, "file", "f", "", "configuration to write (default NAME.yaml, or none with --pem)")
	flags.StringVar(&pemDir, "pem", "", "folder for ca.crt, client.crt and client.key")
	flags.DurationVar(&ttl, "ttl", 0, "how long the certificate is good (default one year)")
	return command
}

func newKey(name string) (keyPEM, csrPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err := pki.NewCSR(name, key)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), nil
}

func (a *app) writeUser(path string, response *balsav1.CreateIdentityResponse, key []byte) error {
	credential, err := pki.NewCredential(response.GetCa(), response.GetCertificate(), key)
	if err != nil {
		return err
	}
	config, err := pki.NewConfig(credential, response.GetServers())
	if err != nil {
		return err
	}
	if err := pki.WriteConfigFile(path, config); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s written, good until %s\n", path, credential.Expires().Format(time.DateTime))
	return nil
}

// writePEM writes the key last: where it is, the rest is.
func (a *app) writePEM(dir string, response *balsav1.CreateIdentityResponse, key []byte) error {
	credential, err := pki.NewCredential(response.GetCa(), response.GetCertificate(), key)
	if err != nil {
		return err
	}
	for _, file := range []struct {
		name string
		text []byte
		mode os.FileMode
	}{{"ca.crt", response.GetCa(), 0o644}, {"client.crt", response.GetCertificate(), 0o644}, {"client.key", key, 0o600}} {
		if err := atomicfile.Write(filepath.Join(dir, file.name), file.text, file.mode); err != nil {
			return err
		}
	}
	fmt.Fprintf(a.out, "ca.crt, client.crt and client.key written to %s, good until %s\n", dir, credential.Expires().Format(time.DateTime))
	return nil
}

func (a *app) userList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List everybody who was given a certificate", Args: cobra.NoArgs, Aliases: []string{"ls"}, Example: "  balsa user list",
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			response, err := c.Cluster.ListIdentities(command.Context(), &balsav1.ListIdentitiesRequest{})
			if err != nil {
				return err
			}
			writer := tabwriter.NewWriter(a.out, 0, 8, 3, ' ', 0)
			fmt.Fprintln(writer, "NAME\tROLE\tSINCE\tUNTIL\tREMOVED")
			for _, identity := range response.GetIdentities() {
				fmt.Fprintf(writer, "%s\t%s\t%s\t%s\t%v\n", identity.GetName(), identity.GetRole(), identity.GetCreated().AsTime().Format(time.DateTime),
					identity.GetNotAfter().AsTime().Format(time.DateTime), identity.GetRemoved())
			}
			return writer.Flush()
		},
	}
}

func (a *app) userRemove() *cobra.Command {
	var role string
	command := &cobra.Command{
		Use: "remove NAME --role ROLE", Short: "Refuse every certificate of a name, on open connections too", Args: cobra.ExactArgs(1),
		Example: "  balsa user remove alice --role admin",
		RunE: func(command *cobra.Command, args []string) error {
			if role == "" {
				return &usageError{errors.New("give --role: two identities of different roles may share a name")}
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			if err := known(command.Context(), c, role, args[0]); err != nil {
				return err
			}
			if _, err := c.Cluster.RemoveIdentity(command.Context(), &balsav1.RemoveIdentityRequest{Name: args[0], Role: role}); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s/%s removed\n", role, args[0])
			return nil
		},
	}
	command.Flags().StringVar(&role, "role", "", "admin, reader, agent or server")
	return command
}

// known refuses a name that nobody was given: a slip of the pen must not look
// like a removal.
func known(ctx context.Context, c *client.Client, role, name string) error {
	response, err := c.Cluster.ListIdentities(ctx, &balsav1.ListIdentitiesRequest{})
	if err != nil {
		return err
	}
	for _, identity := range response.GetIdentities() {
		if identity.GetRole() == role && identity.GetName() == name {
			return nil
		}
	}
	return fmt.Errorf("there is no %s/%s; balsa user list tells who there is", role, name)
}
