{{- define "lstmstream.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "lstmstream.fullname" -}}
{{- $name := include "lstmstream.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "lstmstream.selectorLabels" -}}
app.kubernetes.io/name: {{ include "lstmstream.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "lstmstream.labels" -}}
{{ include "lstmstream.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "lstmstream.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "lstmstream.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "lstmstream.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* Members of the group are pods times workers, and never more than there are partitions. */}}
{{- define "lstmstream.maxReplicas" -}}
{{- if gt (int .Values.workers) (int .Values.partitions) -}}
{{- fail (printf "workers: %d are more than the %d partitions of the input topic" (int .Values.workers) (int .Values.partitions)) -}}
{{- end -}}
{{- div .Values.partitions .Values.workers -}}
{{- end -}}
