package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/internal/clock"
	"github.com/balsa-run/balsa/pki"
)

// somePod makes sure that there is a pod to list, and names it.
func somePod(t *testing.T) string {
	t.Helper()
	name := strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	manifest := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {containers: [{name: a, image: b:1}]}\n", name)
	if _, errOut, code := balsaWith(t, sharedServer(t).config, manifest, "apply", "-f", "-"); code != exitOK {
		t.Fatal(errOut)
	}
	t.Cleanup(func() {
		if _, errOut, code := balsaIn(context.Background(), sharedServer(t).config, "delete", "pod", name); code != exitOK {
			t.Error(errOut)
		}
	})
	return name
}

func balsaIn(ctx context.Context, config string, args ...string) (out, errOut string, code int) {
	var stdout, stderr bytes.Buffer
	code = run(ctx, append([]string{"--config", config}, args...), strings.NewReader(""), &stdout, &stderr)
	return stdout.String(), stderr.String(), code
}

// TestGRPCWithReflection lists pods as grpcurl does: with gRPC's own Go library
// and no generated code, from what the server tells about itself.
func TestGRPCWithReflection(t *testing.T) {
	name := somePod(t)
	config, err := pki.ReadConfigFile(sharedServer(t).config)
	must(t, err)
	conn, err := grpc.NewClient(config.Servers[0], grpc.WithTransportCredentials(credentials.NewTLS(clientTLS(t, config))))
	must(t, err)
	defer conn.Close()

	types := reflectTypes(t, conn, "balsa.v1.ObjectService")
	found, err := types.FindDescriptorByName("balsa.v1.ObjectService")
	must(t, err)
	method := found.(protoreflect.ServiceDescriptor).Methods().ByName("List")
	request := dynamicpb.NewMessage(method.Input())
	fields := method.Input().Fields()
	request.Set(fields.ByName("kind"), protoreflect.ValueOfString("Pod"))
	request.Set(fields.ByName("namespace"), protoreflect.ValueOfString("default"))
	response := dynamicpb.NewMessage(method.Output())
	must(t, conn.Invoke(t.Context(), "/balsa.v1.ObjectService/List", request, response))
	if text := response.String(); !strings.Contains(text, name) {
		t.Errorf("pod %s is not in the list: %s", name, text)
	}
}

func clientTLS(t *testing.T, config *pki.Config) *tls.Config {
	t.Helper()
	credential, err := config.Credential()
	must(t, err)
	return pki.ClientTLS(pki.NewCredentials(credential), clock.Real{})
}

// reflectTypes asks the server for a service and all that it refers to.
func reflectTypes(t *testing.T, conn *grpc.ClientConn, service string) *protoregistry.Files {
	t.Helper()
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	must(t, err)
	ask := func(request *reflectionv1.ServerReflectionRequest) *reflectionv1.ServerReflectionResponse {
		must(t, stream.Send(request))
		response, err := stream.Recv()
		must(t, err)
		return response
	}
	list := ask(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
	offered := list.GetListServicesResponse().GetService()
	if !slices.ContainsFunc(offered, func(s *reflectionv1.ServiceResponse) bool { return s.GetName() == service }) {
		t.Fatalf("%s is not among the services: %v", service, offered)
	}
	set := &descriptorpb.FileDescriptorSet{}
	known := map[string]bool{}
	add := func(response *reflectionv1.ServerReflectionResponse) {
		for _, raw := range response.GetFileDescriptorResponse().GetFileDescriptorProto() {
			file := &descriptorpb.FileDescriptorProto{}
			must(t, proto.Unmarshal(raw, file))
			if !known[file.GetName()] {
				known[file.GetName()] = true
				set.File = append(set.File, file)
			}
		}
	}
	add(ask(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service}}))
	for next := 0; next != len(set.File); next++ {
		for _, needed := range set.File[next].GetDependency() {
			if !known[needed] {
				add(ask(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileByFilename{FileByFilename: needed}}))
			}
		}
	}
	must(t, stream.CloseSend())
	files, err := protodesc.NewFiles(set)
	must(t, err)
	return files
}

// TestCurl lists pods with nothing but curl, a certificate and JSON.
func TestCurl(t *testing.T) {
	name := somePod(t)
	config, err := pki.ReadConfigFile(sharedServer(t).config)
	must(t, err)
	dir := t.TempDir()
	for file, text := range map[string]string{"ca.pem": config.CA, "cert.pem": config.Cert, "key.pem": config.Key} {
		must(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
	}
	curl := func(args ...string) (string, error) {
		args = append([]string{"--silent", "--show-error", "--cacert", "ca.pem", "--header", "Content-Type: application/json",
			"--data", `{"kind": "Pod", "namespace": "default"}`}, args...)
		command := exec.CommandContext(t.Context(), "curl", args...)
		command.Dir = dir
		out, err := command.CombinedOutput()
		return string(out), err
	}
	// By the name that is in every server's certificate, whatever its address, and
	// by the address that this server was told to listen on.
	byName := []string{"--connect-to", pki.ServerName + ":443:" + config.Servers[0], "https://" + pki.ServerName + "/balsa.v1.ObjectService/List"}
	byAddress := []string{"https://" + config.Servers[0] + "/balsa.v1.ObjectService/List"}
	for _, where := range [][]string{byName, byAddress} {
		var list struct {
			Items []struct {
				Pod struct {
					Metadata struct{ Name string }
				}
			}
		}
		text, err := curl(append([]string{"--cert", "cert.pem", "--key", "key.pem"}, where...)...)
		must(t, err)
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		found := false
		for _, item := range list.Items {
			found = found || item.Pod.Metadata.Name == name
		}
		if !found {
			t.Errorf("pod %s is not in the list: %s", name, text)
		}
		if text, err := curl(where...); err == nil || strings.Contains(text, name) {
			t.Errorf("without a certificate curl got: %v, %s", err, text)
		}
	}
}

// TestSDKOutside builds and runs examples/sdk where nothing else of this
// repository is, as a module that requires this one.
func TestSDKOutside(t *testing.T) {
	name := somePod(t)
	root, err := filepath.Abs(filepath.Join("..", ".."))
	must(t, err)
	dir := t.TempDir()
	for _, file := range []string{"main.go", "go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(root, "examples", "sdk", file))
		must(t, err)
		text = bytes.ReplaceAll(text, []byte("=> ../.."), []byte("=> "+root))
		must(t, os.WriteFile(filepath.Join(dir, file), text, 0o600))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, "go", "run", ".", "-config", sharedServer(t).config)
	command.Dir = dir
	command.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	out, err := command.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) || err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !strings.Contains(string(out), "default/"+name+" Pending") {
		t.Errorf("pod %s is not in the list: %s", name, out)
	}
}

// TestSDK uses the SDK against a real server: the whole way of an object.
func TestSDK(t *testing.T) {
	c, ctx := sdk(t), t.Context()
	made, err := client.Create(ctx, c, &balsav1.ConfigMap{
		ApiVersion: "v1", Kind: "ConfigMap", Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: "sdk"}, Data: map[string]string{"a": "1"},
	}, client.WriteOptions{})
	must(t, err)
	if _, err := client.Create(ctx, c, &balsav1.ConfigMap{ApiVersion: "v1", Kind: "ConfigMap", Metadata: &balsav1.ObjectMeta{Namespace: "default", Name: "sdk"}}, client.WriteOptions{}); !client.IsAlreadyExists(err) {
		t.Errorf("a second create: %v", err)
	}
	stale := proto.CloneOf(made)
	made.Data["a"] = "2"
	updated, err := client.Update(ctx, c, made, client.WriteOptions{})
	must(t, err)
	stale.Data["a"] = "3"
	if _, err := client.Update(ctx, c, stale, client.WriteOptions{}); !client.IsConflict(err) || client.Detail(err).GetCurrentResourceVersion() != updated.GetMetadata().GetResourceVersion() {
		t.Errorf("an update of what has changed: %v", err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := client.Wait(ctx, c, "default", "sdk", func(_ *balsav1.ConfigMap, exists bool) (bool, string) { return !exists, "it is there" })
		waiting <- err
	}()
	if gone, err := client.Delete[*balsav1.ConfigMap](ctx, c, "default", "sdk", client.DeleteOptions{UID: made.GetMetadata().GetUid()}); err != nil || !gone {
		t.Errorf("delete: %v, %v", gone, err)
	}
	must(t, <-waiting)
	if _, err := client.Get[*balsav1.ConfigMap](ctx, c, "default", "sdk", client.GetOptions{}); !client.IsNotFound(err) {
		t.Errorf("a get of what is deleted: %v", err)
	}
	past, err := client.Get[*balsav1.ConfigMap](ctx, c, "default", "sdk", client.GetOptions{ResourceVersion: updated.GetMetadata().GetResourceVersion()})
	if err != nil || past.GetData()["a"] != "2" {
		t.Errorf("a get of the past: %v, %v", past, err)
	}
}
