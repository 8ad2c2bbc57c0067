<%inherit file="base.mako"/>
<%namespace name="parts" file="parts.mako"/>
<%def name="title()">Delete</%def>
<article class="narrow">
<h1>Delete this policy?</h1>
<p><strong>${shown.named(policy.display_name, policy.id)}</strong> and the records of its runs go. <strong>Its backups stay</strong>, and nothing deletes them any more but you.</p>
<form method="post" action="${base}/policies/${policy.id}/delete">
<button class="danger">Delete it</button>
<a class="button quiet" href="${base}/policies/${policy.id}">Keep it</a>
</form>
${parts.same(f'DELETE /v3/{policy.project_id}/backup-policies/{policy.id}', None, f'backupfw policy delete {policy.id}')}
</article>
